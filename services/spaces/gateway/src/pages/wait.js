"use strict";
// Asks the same address as a program would until the answer is something else than "starting",
// and then opens it.
(function () {
  var status = document.getElementById("status");
  function again() { setTimeout(ask, 1000); }
  function ask() {
    fetch(location.href, { headers: { Accept: "application/json" }, cache: "no-store", redirect: "manual" })
      .then(function (res) {
        var type = res.headers.get("content-type") || "";
        if (res.status !== 503 || type.indexOf("application/problem+json") !== 0) return location.reload();
        return res.json().then(function (body) {
          if (body.class !== "SpaceStartingError") return location.reload();
          if (body.detail) status.textContent = body.detail;
          again();
        });
      })
      .catch(again);
  }
  again();
})();
