"""Text to ids and back: tokenizers, chat templates, streamed text."""
