"""The pages that the server hands to browsers, as package data."""
