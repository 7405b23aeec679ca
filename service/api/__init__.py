"""The HTTP side: wire models, routes, errors as problem documents. Never imports torch."""
