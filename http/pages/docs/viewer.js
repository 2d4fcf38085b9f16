// The viewer of the API's description. It shows what /openapi.json says, and asks nobody else anything.
"use strict";

SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#viewer",
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  displayRequestDuration: true,
  tryItOutEnabled: true,
  // Without this a description is sent to a validator on the web, unless the server is this machine.
  validatorUrl: null,
});
