"""`python -m tune_ssl.cli` is `tune-ssl`."""

from tune_ssl.cli.main import main

if __name__ == "__main__":
    main()
