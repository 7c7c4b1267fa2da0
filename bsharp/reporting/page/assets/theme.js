(() => {
  let chosen = null;
  try { chosen = localStorage.getItem("bsharp-theme"); } catch { /* storage may be forbidden */ }
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = chosen === "dark" || chosen === "light" ? chosen : dark ? "dark" : "light";
})();
