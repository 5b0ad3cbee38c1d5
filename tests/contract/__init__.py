"""What is written is true: READMEs, protos, tables and commands against the code."""
