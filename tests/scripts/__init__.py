"""Programs and settings that tests start as processes of their own."""
