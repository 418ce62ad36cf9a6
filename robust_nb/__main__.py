"`python -m robust_nb`: see `robust_nb.cli.main`"
import sys
from robust_nb.cli import main

if __name__ == "__main__": sys.exit(main())
