// Sets the formulas of each page that is shown, also after instant navigation. Without KaTeX they stay readable TeX.
document$.subscribe(({ body }) => {
  if (typeof katex === "undefined") return
  for (const element of body.querySelectorAll(".arithmatex")) {
    const tex = element.textContent.trim()
    const display = tex.startsWith("\\[")
    katex.render(tex.slice(2, -2), element, { displayMode: display, throwOnError: false })
  }
})
