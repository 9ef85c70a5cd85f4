"""Where raters judge: pages of their own under /judge, without Gradio and without need of scripts. Nothing in them unblinds."""
