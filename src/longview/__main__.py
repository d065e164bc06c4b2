"""`python -m longview` is `longview`."""

from longview.cli import main

main()
