"""SQLAlchemy by pytimbr-sqla and PyHive: `timbr+http[s]://token@<ontology>:<token>@<host>:<port>`."""
import os

import pytimbr_sqla  # noqa: F401  registers the dialect
from sqlalchemy import create_engine

token, http, https = os.environ["TIMBR_TOKEN"], os.environ["GATEWAY_HTTP"], os.environ["GATEWAY_HTTPS"]
for url in (f"timbr+http://token@sales:{token}@{http}", f"timbr+https://token@sales:{token}@{https}",
            f"hive+http://token@sales:{token}@{http}"):
    with create_engine(url).connect() as connection:
        print(url.partition(":")[0], [row[0] for row in connection.execute("SHOW CONCEPTS")])
