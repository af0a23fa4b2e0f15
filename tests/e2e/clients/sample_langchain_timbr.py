"""The HTTP requests of langchain-timbr: queries, metadata, agent logs and benchmark logs.

The package's `__init__` imports language models and agents; the modules with the requests do not need them.
"""
import datetime
import importlib.util
import os
import sys
import types

package = types.ModuleType("langchain_timbr")
package.__path__ = list(importlib.util.find_spec("langchain_timbr").submodule_search_locations)
sys.modules["langchain_timbr"] = package


class Unused(types.ModuleType):
    """In place of a module with language models, from which the benchmark imports names."""

    def __getattr__(self, name):
        return None


for name in ("llm_wrapper", "llm_wrapper.llm_wrapper", "utils.timbr_llm_utils"):
    sys.modules[f"langchain_timbr.{name}"] = Unused(name)
package.create_timbr_sql_agent = package.GenerateTimbrSqlChain = None

from langchain_timbr.kbclient import KBClient  # noqa: E402
from langchain_timbr.utils import benchmark, chain_logger, memory, prompt_service, timbr_utils  # noqa: E402

url, token = f"http://{os.environ['GATEWAY_HTTP']}", os.environ["TIMBR_TOKEN"]
connection = {"url": url, "token": token, "ontology": "sales", "verify_ssl": False, "is_jwt": False}

print("query", timbr_utils.run_query("SELECT name FROM customer ORDER BY customer_id LIMIT 1", connection))
print("search", KBClient(url, token).search("Who?", ["kb"]).is_high_confidence)
print("history", memory.fetch_conversation_history(connection, "c-1", 5))
service = prompt_service.PromptService({**connection, "verify_ssl": False})
print("prompt", service.get_generate_sql_template() is not None)

now = datetime.datetime.now(datetime.timezone.utc)
context = chain_logger.AgentLogContext(
    query_id=chain_logger.new_query_id(), agent_name="agent", url=url, token=token, chain_type="sample", start_time=now,
    prompt="Who?", enable_trace=True)
chain_logger.log_agent_start(context, ontology="sales")
chain_logger.log_agent_step(context)
chain_logger.log_agent_failure(context, "it stopped")
chain_logger._flush_log_queue(20)

# The requests of `run_benchmark`, which itself needs a language model. Each raises an exception if it is rejected.
benchmark._log_benchmark_running(url, token, {"run_id": "b-1", "agent_name": "agent", "total": 1})
benchmark._log_benchmark_update_completed(url, token, "b-1", 1, "agent")
benchmark._log_benchmark_history(url, token, {"run_id": "b-1", "agent_name": "agent"})
