// What a reader would see go wrong on the page that is shown, one sentence for each; `dark` says which figures belong on it.
async dark => {
  const found = []
  const require = (right, sentence) => { if (!right) found.push(sentence) }
  await document.fonts.ready

  require(document.title, "has no title")
  const wide = document.documentElement.scrollWidth - innerWidth
  require(wide <= 0, `scrolls sideways by ${wide} pixels`)

  for (const image of document.images) {
    const name = image.src.split("/").pop(), only = name.match(/#only-(light|dark)$/)
    const isShown = getComputedStyle(image).display != "none"
    require(image.complete && image.naturalWidth, `cannot show the picture ${name}`)
    require(image.alt.trim(), `has no text in place of the picture ${name}`)
    require(!only || isShown == ((only[1] == "dark") == dark), `${isShown ? "shows" : "hides"} ${name}`)
  }

  for (const formula of document.querySelectorAll(".arithmatex"))
    require(formula.querySelector(".katex") && !formula.querySelector(".katex-error"), `leaves ${formula.textContent} as TeX`)
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  while (texts.nextNode()) {
    const { data, parentElement } = texts.currentNode
    const isRaw = /\\[([]|\$\$/.test(data) && !parentElement.closest("pre, code, script, style, .arithmatex")
    require(!isRaw, `has raw TeX: ${data.trim()}`)
  }

  const header = document.querySelector(".md-header")?.getBoundingClientRect().bottom ?? 0
  for (const { hash } of document.querySelectorAll("a[href^='#']")) {
    const target = document.getElementById(decodeURIComponent(hash.slice(1)))
    if (hash && !hash.startsWith("#__") && target?.getClientRects().length) {
      location.hash = hash
      await new Promise(requestAnimationFrame)
      const { top } = target.getBoundingClientRect()
      require(header - 1 <= top && top < innerHeight, `puts ${hash} at ${Math.round(top)} of ${innerHeight} pixels`)
    } else require(!hash || hash.startsWith("#__"), `does not show ${hash}, which it links to`)
  }
  return found
}
