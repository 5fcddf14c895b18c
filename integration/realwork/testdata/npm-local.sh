#needs: npm node
#ignore: ^node_modules/\.cache$
mkdir -p vendor/left/lib vendor/right packed
cat >vendor/left/package.json <<X
{"name":"left","version":"1.2.3","main":"lib/index.js","bin":{"left":"cli.js"},"dependencies":{"right":"file:../right"}}
X
echo 'module.exports = s => s + require("right")' >vendor/left/lib/index.js
printf '#!/usr/bin/env node\nconsole.log("left")\n' >vendor/left/cli.js
chmod +x vendor/left/cli.js
i=0
while [ $i -lt 200 ]; do
	echo "module.exports = $i" >vendor/left/lib/m$i.js
	i=$((i + 1))
done
echo '{"name":"right","version":"0.1.0","main":"r.js"}' >vendor/right/package.json
echo 'module.exports = " right"' >vendor/right/r.js
(cd vendor/right && npm pack --silent --pack-destination ../../packed >/dev/null)
sed -i 's,file:../right,file:../../packed/right-0.1.0.tgz,' vendor/left/package.json
(cd vendor/left && sed -i 's,file:[^"]*,0.1.0,' package.json && npm pack --silent --pack-destination ../../packed >/dev/null)
cat >package.json <<X
{"name":"app","version":"1.0.0","private":true,
 "scripts":{"hello":"node index.js","postinstall":"echo installed > installed.txt"},
 "dependencies":{"left":"file:packed/left-1.2.3.tgz","right":"file:packed/right-0.1.0.tgz"}}
X
echo 'console.log(require("left")("left"))' >index.js
#--- install from tarballs
export npm_config_cache="$(mktemp -d)"
npm install --silent --offline
npm run --silent hello
ls node_modules node_modules/.bin
node_modules/.bin/left
cat installed.txt
#--- again from the lock file
export npm_config_cache="$(mktemp -d)"
rm -r node_modules
npm ci --silent --offline
npm run --silent hello
npm ls --offline 2>/dev/null | sed 1d
#--- remove
rm -r node_modules
ls
#--- and install once more
export npm_config_cache="$(mktemp -d)"
npm install --silent --offline --ignore-scripts
npm uninstall --silent --offline --ignore-scripts left
ls node_modules
