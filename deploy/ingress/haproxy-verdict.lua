-- Asks the gateway whether a request may pass, and keeps what it says in variables of the transaction.
-- Whatever is not a clear yes leaves txn.verdict unset: the request then goes to the gateway, which says why.

local KEPT = {
  ["authorization"] = "txn.authorization",
  ["saas-token"] = "txn.saas_token",
  ["x-emporix-session-id"] = "txn.session_id",
  ["x-emporix-customer-id"] = "txn.customer_id",
  ["set-cookie"] = "txn.new_cookie",
  ["access-control-allow-origin"] = "txn.cors_origin",
  ["access-control-expose-headers"] = "txn.cors_exposed",
  ["vary"] = "txn.vary",
}

-- Of the connection or of the body, neither of which goes along; or words about the original, which are ours to say.
local LEFT_OUT = {
  ["connection"] = true, ["keep-alive"] = true, ["upgrade"] = true, ["te"] = true, ["expect"] = true,
  ["content-length"] = true, ["transfer-encoding"] = true, ["host"] = true,
  ["x-original-url"] = true,
}

-- A verdict that is later, in milliseconds, is none.
local PATIENCE = 15000

core.register_action("verdict", { "http-req" }, function(txn, address)
  local headers = {}
  for name, values in pairs(txn.http:req_get_headers()) do
    if not LEFT_OUT[name] then
      headers[name] = {}
      for at = 0, #values do headers[name][at + 1] = values[at] end
    end
  end
  headers["x-original-method"] = { txn.f:method() }
  headers["x-original-uri"] = { txn.f:pathq() }
  headers["x-original-host"] = { txn.f:req_hdr("host") }

  local url = "http://" .. address .. "/auth/haproxy"
  local answer = core.httpclient():get({ url = url, headers = headers, timeout = PATIENCE })
  if not answer or answer.status ~= 200 then return end
  for name, variable in pairs(KEPT) do
    local values = answer.headers[name]
    if values then txn:set_var(variable, values[0]) end
  end
  txn:set_var("txn.verdict", "pass")
end, 1)
