"""`python -m driving_xai`: the command line of the checkout one stands in."""

from driving_xai.cli import main

main()
