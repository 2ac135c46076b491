"""Reports: charts as SVG, and the HTML page of one run or several."""
