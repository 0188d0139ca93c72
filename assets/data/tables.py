"""A domain's ratings on disk: a folder with one Parquet file a table, which DuckDB reads as its own."""

from pathlib import Path

import duckdb

from assets.data.files import literal

TABLES = ("ratings", "users", "items", "titles", "quarantine")


# As text: Dagster keeps these functions, and with them a type of DuckDB, beyond the end of the interpreter.
def attach(connection: "duckdb.DuckDBPyConnection", folder: Path, name: str = "main") -> None:
    """Make the tables of a folder views in the schema `name` of the connection."""
    connection.execute(f"CREATE SCHEMA IF NOT EXISTS {name}")
    for file in folder.glob("*.parquet"):
        # Folders above are called domain=…, which DuckDB would make a column of.
        table = f"read_parquet({literal(file)}, hive_partitioning = false)"
        connection.execute(f"CREATE VIEW {name}.{file.stem} AS FROM {table}")


def write(connection: "duckdb.DuckDBPyConnection", query: str, folder: Path, table: str) -> None:
    """Write the rows of a query, in its order, as one table of a folder."""
    file = "'" + str(folder / f"{table}.parquet").replace("'", "''") + "'"
    connection.execute(f"COPY ({query}) TO {file} (FORMAT parquet, COMPRESSION zstd, PARQUET_VERSION v2)")
