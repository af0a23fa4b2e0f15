"""Hive's JDBC driver by pytimbr. Needs Java."""
import os

import pytimbr

host, _, port = os.environ["GATEWAY_HTTP"].partition(":")
connection = pytimbr.get_connection(host, port, "sales", "token", os.environ["TIMBR_TOKEN"], enabled_ssl="false")
for _ in range(3):
    cursor = connection.cursor()
    cursor.execute("SHOW CONCEPTS")
    print([row[0] for row in cursor.fetchall()])
    cursor.close()
connection.close()
