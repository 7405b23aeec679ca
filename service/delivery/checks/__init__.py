"""What `internlm-chat check` looks at, and what would mend it."""
