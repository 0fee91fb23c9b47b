"""The HTTP server: OpenAI's completions and chat over one engine that runs in a thread of its own.

    HTTP ─ limits ─▶ app ─ protocol ─▶ Request ─ loop ─▶ engine (its thread)
                      ◀─ answers ──── Piece ◀───────────┘      metrics watches both

JSON, HTTP and Prometheus stay in here; the engine knows nothing of them.
"""
