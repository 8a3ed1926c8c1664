"use strict";
{
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const divs = [...document.querySelectorAll("[data-chart]")];
  const algos = new Set();
  const hidden = new Set();
  const touch = matchMedia("(pointer: coarse)").matches;
  const config = { displayModeBar: false, responsive: true, doubleClick: "reset" };

  // An algorithm is shown or hidden in all charts alike; in legends it stays, greyed.
  function show(div) {
    const own = div.data.map((trace, i) => (trace.meta ? i : -1)).filter((i) => i >= 0);
    if (own.length) Plotly.restyle(div, { visible: own.map((i) => (hidden.has(div.data[i].meta) ? "legendonly" : true)) }, own);
  }
  function toggle(algo) {
    if (!hidden.delete(algo)) hidden.add(algo);
    divs.forEach(show);
  }
  function only(algo) {
    const others = [...algos].filter((one) => one !== algo);
    const alone = !hidden.has(algo) && others.every((one) => hidden.has(one));
    hidden.clear();
    if (!alone) others.forEach((one) => hidden.add(one));
    divs.forEach(show);
  }

  // With a viewBox of its own size a drawing can be scaled by CSS, which print does.
  function scalable(div) {
    const { width, height } = div._fullLayout;
    div.style.setProperty("--ratio", `${width} / ${height}`);
    div.querySelectorAll(".main-svg").forEach((svg) => svg.setAttribute("viewBox", `0 0 ${width} ${height}`));
  }

  async function draw() {
    for (const div of divs) {
      const { data, layout } = charts[div.dataset.chart];
      layout.dragmode = touch ? false : "zoom"; // a finger on a chart scrolls the page
      data.forEach((trace) => trace.meta && algos.add(trace.meta));
      await Plotly.newPlot(div, data, layout, config);
      scalable(div);
      div.on("plotly_afterplot", () => scalable(div));
      div.on("plotly_legendclick", (event) => { toggle(event.data[event.curveNumber].meta); return false; });
      div.on("plotly_legenddoubleclick", (event) => { only(event.data[event.curveNumber].meta); return false; });
      await new Promise((next) => setTimeout(next)); // between charts the page answers
    }
    document.documentElement.dataset.drawn = divs.length;
  }

  draw();
}
