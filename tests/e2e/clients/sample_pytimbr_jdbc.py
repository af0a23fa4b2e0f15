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

# The URL of timbr-node-jdbc, which uses the same driver.
connection = pytimbr.get_connection(
    host, port, "sales", "token", os.environ["TIMBR_TOKEN"], enabled_ssl="false", http_path="/timbr-server/ontology/sales")
cursor = connection.cursor()
cursor.execute("SHOW CONCEPTS")
print([row[0] for row in cursor.fetchall()])
connection.close()
