import click


@click.command()
def console():
    """The menu."""
