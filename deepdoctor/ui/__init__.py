"""The page. The only package that imports gradio; one file a tab."""
