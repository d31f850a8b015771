-- One session in a shared dictionary: cookie, lookup, signature and end of the JWT, both headers.
local ffi = require "ffi"
local base64 = require "ngx.base64"
local cjson = require "cjson.safe"

ffi.cdef [[
typedef struct evp_md_st EVP_MD;
typedef struct hmac_ctx_st HMAC_CTX;
typedef struct engine_st ENGINE;
const EVP_MD *EVP_sha256(void);
HMAC_CTX *HMAC_CTX_new(void);
int HMAC_Init_ex(HMAC_CTX *ctx, const void *key, int length, const EVP_MD *md, ENGINE *engine);
int HMAC_Update(HMAC_CTX *ctx, const unsigned char *data, size_t length);
int HMAC_Final(HMAC_CTX *ctx, unsigned char *md, unsigned int *length);
]]

local hmac = ffi.C.HMAC_CTX_new()
ffi.C.HMAC_Init_ex(hmac, "@passphrase@", #"@passphrase@", ffi.C.EVP_sha256(), nil)
local digest, digest_length = ffi.new("unsigned char[64]"), ffi.new("unsigned int[1]")

local function verified(jwt)
  local first = string.find(jwt, ".", 1, true)
  local second = first and string.find(jwt, ".", first + 1, true)
  if not second then return false end
  ffi.C.HMAC_Init_ex(hmac, nil, 0, nil, nil)
  ffi.C.HMAC_Update(hmac, jwt, second - 1)
  ffi.C.HMAC_Final(hmac, digest, digest_length)
  if base64.decode_base64url(string.sub(jwt, second + 1)) ~= ffi.string(digest, digest_length[0]) then return false end
  local claims = cjson.decode(base64.decode_base64url(string.sub(jwt, first + 1, second - 1)))
  return claims and claims.exp and claims.exp > ngx.time()
end

local sessions = ngx.shared.sessions
sessions:set("@cookie@", "Bearer @access@\n@jwt@")

return function()
  local cookie = ngx.var["cookie_emporix-session"]
  local session = cookie and sessions:get(cookie)
  if not session then return ngx.exit(401) end
  local split = string.find(session, "\n", 1, true)
  local jwt = string.sub(session, split + 1)
  if not verified(jwt) then return ngx.exit(401) end
  ngx.var.access, ngx.var.jwt = string.sub(session, 1, split - 1), jwt
end
