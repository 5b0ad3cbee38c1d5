"""Several server processes behind one port: a supervisor and what it supervises."""
