"""Gene lists of the user: known drivers, known targets, essential genes, or whatever is to be flagged beside a gene.

A CSV file with a header and two columns, one row a gene in a list; nothing comes with the package, nothing is
downloaded:

    gene,list
    KRAS,driver
    EGFR,driver
    EGFR,known target
"""

from __future__ import annotations

from pathlib import Path

import polars as pl


def read_lists(path: Path) -> dict[str, tuple[str, ...]]:
    """Names of the lists that hold each gene.

    Raises
    ------
    ValueError
        If the file is not as the module docstring says.
    """
    try:
        table = pl.read_csv(path, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ValueError(
            f"gene lists: expected a CSV file with the columns gene,list, got {path.name!r}: {error}"
        ) from None
    if missing := {"gene", "list"} - set(table.columns):
        raise ValueError(
            f"gene lists: expected the columns gene,list in {path.name!r}, got {', '.join(table.columns)}; add "
            f"{', '.join(sorted(missing))}"
        )
    table = table.select(pl.col("gene", "list").str.strip_chars()).drop_nulls().unique().sort("gene", "list")
    return {str(gene): tuple(part["list"]) for (gene,), part in table.partition_by("gene", as_dict=True).items()}


def with_lists(table: pl.DataFrame, path: str | None) -> pl.DataFrame:
    """The table with a column ``lists``, the names of those that hold the gene, or null; as it is without a file."""
    if path is None:
        return table
    lists = read_lists(Path(path))
    named = [", ".join(lists.get(gene, ())) or None for gene in table["gene"].to_list()]
    return table.with_columns(pl.Series("lists", named, pl.String))
