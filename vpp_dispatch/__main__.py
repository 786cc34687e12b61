"""`python -m vpp_dispatch` is `vpp-dispatch`."""

from vpp_dispatch.cli import main

if __name__ == "__main__":
    main(prog_name="vpp-dispatch")
