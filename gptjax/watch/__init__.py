"""`gptjax watch`: what a run or a study does, as one HTML page, written to a file or served while training goes on.

tail      new rows of a metrics.jsonl that grows        series    numbers by step, and as many of them as a chart shows
goodput   where the time of a run went                  record    a run's rows as series, events and facts
charts    what is drawn of a run                        run_page, study_page   what each page says
view      what a page shows at one moment               page      the HTML file, with page.js and page.css
serving   the page and its data, to this machine alone
"""
