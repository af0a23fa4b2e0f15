"""The backend's database."""

import sqlite3

SCHEMA = """
CREATE TABLE customer (customer_id INTEGER PRIMARY KEY, name TEXT, country TEXT);
INSERT INTO customer VALUES (1, 'Ada Lovelace', 'United Kingdom'), (2, 'Grace Hopper', 'United States'),
                            (3, 'Hedy Lamarr', 'Austria');
CREATE TABLE ontology (name TEXT PRIMARY KEY);
INSERT INTO ontology VALUES ('sales'), ('logistics');
CREATE TABLE example (knowledge_base TEXT, example_name TEXT, question TEXT, query TEXT, instructions TEXT,
                      validate_sql INTEGER, confidence REAL, changed_on TEXT);
INSERT INTO example VALUES ('kb', 'top customers', 'Who are our customers?', 'SELECT name FROM customer', NULL, 1, 0.93,
                            '2026-01-02 03:04:05');
CREATE TABLE async_result (id TEXT PRIMARY KEY, rows TEXT, asked INTEGER DEFAULT 0);
"""


def create(path):
    with sqlite3.connect(path) as database:
        database.executescript(SCHEMA)


def connect(path):
    database = sqlite3.connect(path, timeout=10)
    database.row_factory = sqlite3.Row
    return database


def select(path, sql, limit=None):
    """The rows of a query as dictionaries."""
    with connect(path) as database:
        cursor = database.execute(sql)
        rows = cursor.fetchmany(limit) if limit else cursor.fetchall()
        return [dict(row) for row in rows]
