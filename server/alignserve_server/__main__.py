"""`python -m alignserve_server`: the command `alignserve-server`."""

from alignserve_server.cli.main import main

if __name__ == "__main__":
    main()
