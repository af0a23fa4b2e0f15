"""API keys that the backend accepts."""

PLATFORM_KEYS = {"tk_platform_dora": "dora"}
SERVICE_KEY = "tk_service_of_the_gateway"
