"""`python -m gradex <stage>`: the same as `gradex <stage>`."""

from gradex.cli import main

raise SystemExit(main())
