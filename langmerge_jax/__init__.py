"""Train one LoRA adapter a language, merge as needed."""
