"""Chats that are kept: SQLite in the home, shared by the terminal application and `localllm chat`."""
