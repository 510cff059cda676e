"""Chats, packed documents and tasks."""
