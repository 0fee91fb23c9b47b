"""Run an artifact: packed linears, a KV cache, a sampler, text in and text out. No transformers.

    prompt ─ tokenizer ─▶ ids ─ model ─▶ logits ─ sampling ─▶ id ─ stream ─▶ text
              (linear, rope, kv_cache inside)  ◀────────────────┘

`Engine` in `compress.runtime.engine` is the front door.
"""
