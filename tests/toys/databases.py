"""PostgreSQL for the tests: whether there is one, and what a database of it answers."""

from pathlib import Path

from steps.tracking.postgres import find_programs


def missing() -> str:
    """Why there is no PostgreSQL to test with; empty where there is one."""
    try:
        find_programs(Path("none"))
        import psycopg
    except (RuntimeError, ImportError) as error:
        return str(error)
    return "" if psycopg.pq.version() else "psycopg has no libpq"


def ask(address: str, query: str) -> list[tuple]:
    import psycopg

    with psycopg.connect(address.replace("+psycopg", "")) as connection:
        found = connection.execute(query)
        return found.fetchall() if found.description else []
