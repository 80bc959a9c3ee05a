"""
The decision log: files of decisions, and how they are written and read.

Parquet files, by DuckDB. Registry changes belong to `stores.registry`, rules to `domain`.
"""
