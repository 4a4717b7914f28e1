// Puts the panels together and draws them for the first time.
function start() {
  buildTables();
  buildDifferences();
  for (const holder of document.querySelectorAll(".static")) registerFigure(holder.id, { svg: () => holder.querySelector("svg"), csv: () => data.figureTables[holder.id] });
  if (data.models.length) {
    buildPickers();
    buildCurves();
    buildHeatMaps();
    markTables();
    for (const holder of document.querySelectorAll(".scale.amounts")) drawScale(holder, amountRamp, amountTicks(), "× uniform attention");
    if (data.displayed.length) {
      drawScale(byId("scale"), amountRamp, amountTicks(), "× uniform attention");
      if (roles.includes("difference")) drawScale(byId("difference-scale"), differenceRamp, differenceTicks(), "difference, × uniform");
      buildExplorer();
      registerFigure("explorer", { svg: explorerFigure, csv: explorerTable });
    }
    buildSegmentation();
    buildPredictions();
    buildGallery();
  }
  buildDownloads();
  buildTheme();
  redraw();
  document.documentElement.dataset.ready = "yes";
}
start();
