"""`python -m overfocus` and `accelerate launch -m overfocus`: the same program as the console script."""

from overfocus_cli.main import run

if __name__ == "__main__":
    run()
