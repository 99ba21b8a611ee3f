"""The program ``basenet``: one file per subcommand, each with a click command named ``command``.

`cli.main` finds a subcommand by its name in one table and imports it only when it is called, so
that ``basenet version`` does not load what ``basenet serve`` needs.
"""
