// How found pages are ranked: a heading that is what was asked comes first. The numbers are Sphinx's own.
var Scorer = {
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
  score: function (result) {
    var words = function (text) {
      return text.toLowerCase().replace(/[^a-z0-9]+/g, " ").trim();
    };
    var asked = words(new URLSearchParams(window.location.search).get("q") || "");
    var heading = words(result[1].split(" > ").pop());
    return asked && heading.includes(asked) ? result[4] + 1000 : result[4];
  },
};
