"""The engine's REST API and single sign-on over HTTPS."""
