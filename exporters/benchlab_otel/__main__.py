"""`python -m benchlab_otel` is the command `benchlab-otel`."""

from benchlab_otel.cli import main

main()
