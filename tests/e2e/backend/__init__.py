"""A backend with the documented endpoints of Timbr's API, on SQLite."""
