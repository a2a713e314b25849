import typer

data = typer.Typer(help="Look at the rows of a recipe or a file.")
