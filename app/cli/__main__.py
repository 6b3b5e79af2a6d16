"""`python -m app.cli` is `holdfast`: for whoever starts it from Python, wherever the script was installed."""

from app.cli import main

main()
