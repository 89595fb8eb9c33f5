"""The messages of a chat: one widget that draws those in view."""
