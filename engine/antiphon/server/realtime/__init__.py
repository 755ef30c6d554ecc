"""OpenAI's Realtime interface: sessions, events, voice activity."""
